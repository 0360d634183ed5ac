"""What a system loses when queries and documents are not as clean as the evaluation set wrote them."""
