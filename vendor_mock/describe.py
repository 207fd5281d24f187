"""Prints the vendor API's OpenAPI document, which `docs/vendor-openapi.json` is: `python -m vendor_mock.describe`."""

import json

from pydantic import SecretStr

from vendor_mock.app import create_app
from vendor_mock.config import VendorMockSettings


def description() -> str:
    """Return the document as the file has it."""
    app = create_app(VendorMockSettings(secret=SecretStr("unused")))
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(description(), end="")
