"""Makes a small new model with random weights around a tokenizer.

For trying things where there is no model to download: the folder loads like any other.
"""

from __future__ import annotations

from typing import Any

from penchant.recipe import InitRecipe
from penchant.train.output_dir import check_new


def run(recipe: InitRecipe, dry_run: bool = False) -> dict[str, Any]:
    """Writes model and tokenizer to `output_dir`; returns its sizes."""
    folder = check_new(recipe.output_dir)

    from penchant.data.render import chat_template
    from penchant.models.load import load_tokenizer
    from penchant.models.new import new_model, ready_tokenizer
    from penchant.models.save import save_model

    template = chat_template(recipe.chat_template) if recipe.chat_template else None
    tokenizer = ready_tokenizer(load_tokenizer(recipe.tokenizer), template)
    wanted = {
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
    }
    others = {
        "num_key_value_heads": recipe.num_key_value_heads,
        "intermediate_size": recipe.intermediate_size,
        "max_position_embeddings": recipe.max_position_embeddings,
        "tie_word_embeddings": recipe.tie_word_embeddings,
    }
    # What was asked for must be known to the architecture; our defaults need not be.
    asked = {name: value for name, value in others.items() if name in recipe.model_fields_set}
    sizes = wanted | asked | recipe.config
    model = new_model(tokenizer, recipe.architecture, sizes, seed=recipe.seed, defaults=others)
    if not dry_run:
        save_model(model, tokenizer, folder)
    return {
        "output_dir": recipe.output_dir,
        "architecture": recipe.architecture,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": model.config.get_text_config().vocab_size,
    }
