"""What a person reads of an evaluation: text, HTML and charts, from its dictionary of numbers."""
