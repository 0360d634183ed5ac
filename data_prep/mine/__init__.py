"""Documents → pairs with hard negatives, by a policy one can read and an audit one can check."""
