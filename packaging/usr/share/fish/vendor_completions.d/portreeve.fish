# Asks the program for its script, so that both are of one version.
COMPLETE=fish portreeve | source
