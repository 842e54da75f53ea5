"""The live audit: canaries beside an organisation's records, in a real run, where its own policy allows them."""
