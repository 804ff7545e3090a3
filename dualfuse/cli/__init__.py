"""The command line: ``main`` and one module per command. Only this package prints, and only it configures logging."""
