"""Whole models on the grid: those of 1D, made of the grid's layers."""
