"""The peers' side of the benchmark `peers`: what runs in their virtual environment, as processes of their own.

Imports the standard library, the peers' packages and itself, and nothing else of this house. A worker reads orders
from its input and answers on its output, a line of JSON each.
"""
