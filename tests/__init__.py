"""Tests of iterdiff."""
