"""Where clusters come from: this machine, kind, GKE, EKS, AKS, or one that is there."""
