"""Verification: does an artifact compute what its plan states?"""
