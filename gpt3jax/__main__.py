import sys

from gpt3jax.cli import main

sys.exit(main())
