"""How the demo's weights are made. `recipe.sh` beside this folder runs the steps in order."""
