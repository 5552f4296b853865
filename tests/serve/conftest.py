from browsing import browser, page  # noqa: F401  # fixtures
from serving import bundled, served  # noqa: F401  # fixtures
