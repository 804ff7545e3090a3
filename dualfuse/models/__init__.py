"""The networks: four verbs each."""
