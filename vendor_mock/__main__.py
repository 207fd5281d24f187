import sys

from vendor_mock.serve import main

sys.exit(main())
