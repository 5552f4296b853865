from serving import bundled, served  # noqa: F401  # fixtures
