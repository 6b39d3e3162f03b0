"""`python -m glm4_deploy`."""

from glm4_deploy.cli.app import main

main()
