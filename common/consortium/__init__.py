"""Who is in a consortium, and what each of them signs."""
