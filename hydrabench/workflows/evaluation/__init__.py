"""The commands `attack` and `certify`: what is judged, block by block, into a ledger."""
