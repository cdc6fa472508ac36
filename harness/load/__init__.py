"""The load engine: requests with due times drawn before the run, sent by a process of its own.

Nothing in this package imports anything else of the project, so that a worker starts fast and nothing
disturbs its clock.
"""
