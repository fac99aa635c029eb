"""What langneurons costs, measured beside what others do: ``python -m benchmarks`` prints one table."""
