"""What both sides share; imports none of the other rooms."""
