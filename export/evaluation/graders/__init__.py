"""Graders: each decides whether an answer is right. One module a grader; ``registry`` knows them all."""
