"""Plotly figures of tables and arrays, drawn once for the pages, the report and notebooks. No figure reads a file."""
