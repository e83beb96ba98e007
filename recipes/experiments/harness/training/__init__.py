"""How it is trained: recipes, penalties, losses."""
