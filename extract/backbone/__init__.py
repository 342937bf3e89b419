from glscl.extract.backbone.light_imports import make_imports_light

make_imports_light()
