"""What every room may use, and which uses none of them: errors, first-match rules, random keys, whole files."""
