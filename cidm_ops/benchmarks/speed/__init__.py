"""Benchmarks: each compares two or more sides, interleaved in one run, and gives one flat JSON object of figures."""
