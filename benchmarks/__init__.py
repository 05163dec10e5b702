"""What exhume recovers, from which networks, and how fast: tables, studies, charts and the zoo. See README.md."""
