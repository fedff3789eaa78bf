"""Systems that stand beside TITN in its literature: each a small idea on how a classifier should look or learn, in one
file, built from this library's pieces, to be trained on the same data with the same recipe. (A tenth, manifold
distillation, is in `distillation.py`.)

Some are networks (`PRESETS`, by name in `create_model`), some are what a network is trained for (`OBJECTIVES`, by name
in `recipes.Run`).
"""

from titn_lib.models.related import adaptovision, adavit, care, cmt, fusion, mvt, revit, vitae

FAMILIES: dict[str, tuple[type, type]] = {
    "revit": (revit.ReViT, revit.ReViTConfig),
    "fusion": (fusion.Fusion, fusion.FusionConfig),
    "adaptovision": (adaptovision.AdaptoVision, adaptovision.AdaptoVisionConfig),
    "adavit": (adavit.AdaViT, adavit.AdaViTConfig),
    "care": (care.CARE, care.CAREConfig),
    "cmt": (cmt.CMT, cmt.CMTConfig),
    "vitae": (vitae.ViTAE, vitae.ViTAEConfig),
    "mvt": (mvt.MVT, mvt.MVTConfig),
}
PRESETS: dict = {
    name: config
    for module in (revit, fusion, adaptovision, adavit, care, cmt, vitae, mvt)
    for name, config in module.PRESETS.items()
}
