"""Nouns and rules, pure: no clock, no network, no `app`. Every move takes values and returns a value."""
