"""Four lessons, e01 to e04, on 4 devices: each prints the same text in both packages, figure by figure."""
