"""``iris.py --out DIR``: logistic regression on the iris data set that scikit-learn carries."""

from __future__ import annotations

import argparse
from pathlib import Path

import joblib
import numpy as np
from golden import write  # type: ignore[import-not-found,unused-ignore]
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000, random_state=7).fit(features, labels)
    artifacts = arguments.out / "artifacts"
    artifacts.mkdir()
    joblib.dump(model, artifacts / "model.joblib")
    rows = np.random.default_rng(7).permutation(len(features))
    cases = []
    start = 0
    for batch in (1, 1, 2, 8, 32):
        inputs = features[rows[start : start + batch]]
        start += batch
        # MLServer's scikit-learn runtime answers predict() under the name "predict", one column.
        outputs = model.predict(inputs).astype(np.int64).reshape(-1, 1)
        cases.append(([("input-0", "FP64", inputs)], [("predict", "INT64", outputs)]))
    write(arguments.out / "golden.npz", cases)


if __name__ == "__main__":
    main()
