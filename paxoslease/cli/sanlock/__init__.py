"""The command line of sanlock(8): the same words, output and exit codes.

Texts are bytes throughout, since names and paths are: what comes in is what goes out.
"""
