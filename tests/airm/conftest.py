from tests.support.catalogs import root

__all__ = ["root"]
