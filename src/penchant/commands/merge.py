"""Adds an adapter's weights into its base model and saves the sum as an ordinary model."""

from __future__ import annotations

from typing import Any

from penchant.recipe import MergeRecipe
from penchant.train.output_dir import check_new


def run(recipe: MergeRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes the merged model and the adapter's tokenizer to `output_dir`."""
    folder = check_new(recipe.output_dir)

    from penchant.models.adapters import base_of, merge
    from penchant.models.load import load_tokenizer
    from penchant.models.save import save_model

    base = recipe.base or base_of(recipe.adapter)
    found = {"adapter": recipe.adapter, "base": base, "output_dir": recipe.output_dir}
    if dry_run:
        return found
    model = merge(recipe.adapter, base=base, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(recipe.adapter, trust_remote_code=recipe.trust_remote_code)
    save_model(model, tokenizer, folder)
    return found | {"parameters": sum(p.numel() for p in model.parameters())}
