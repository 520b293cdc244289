"""Fourteen exercises cut from this very source, and their autograder: python -m nanoreason course make|grade|bundle.

marked regions of the package --make--> starter tree (stubs, statements, public tests), instructor's tree
submission --regions spliced into the instructor's package--> a worker without rights --grade--> results.json
run folder --bundle--> one file whose claims the grader recomputes
"""
