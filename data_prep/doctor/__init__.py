"""The dataset doctor: what is wrong with a dataset, where, and how to mend it.

examine.py runs the checks that registry.py lists over a Subject; each check is a function of a module named after what
it looks at. Nothing here needs more than the dataset and a modality configuration.
"""
