"""Millions of parameters of open_clip's architectures, which only building them would tell."""

from __future__ import annotations

_COUNTED = """
coca_base=440.3  coca_roberta-ViT-B-32=420.4  coca_ViT-B-32=253.6  coca_ViT-L-14=638.5  convnext_base=151.5
convnext_base_w=179.4  convnext_base_w_320=179.4  convnext_large=321.1  convnext_large_d=351.8
convnext_large_d_320=351.8  convnext_small=113.3  convnext_tiny=92.3  convnext_xlarge=653.9  convnext_xxlarge=1200.6
convnext_xxlarge_320=1200.6  EVA01-g-14=1136.4  EVA01-g-14-plus=1366.6  EVA02-B-16=149.7  EVA02-E-14=4704.6
EVA02-E-14-plus=5044.9  EVA02-L-14=427.8  EVA02-L-14-336=428.1  MobileCLIP2-B=149.8  MobileCLIP2-L-14=427.6
MobileCLIP2-S0=74.8  MobileCLIP2-S2=99.2  MobileCLIP2-S3=248.9  MobileCLIP2-S4=445.4  MobileCLIP-B=149.8
MobileCLIP-S1=85.0  MobileCLIP-S2=99.2  mt5-base-ViT-B-32=365.7  mt5-xl-ViT-H-14=2306.8  nllb-clip-base=501.9
nllb-clip-base-siglip=507.5  nllb-clip-large=1399.2  nllb-clip-large-siglip=1195.5  PE-Core-B-16=447.7
PE-Core-bigG-14-448=2419.3  PE-Core-L-14-336=671.1  PE-Core-S-16-384=87.2  PE-Core-T-16-384=69.5  RN50=102.0
RN50-quickgelu=102.0  RN50x4=178.3  RN50x4-quickgelu=178.3  RN50x16=291.0  RN50x16-quickgelu=291.0  RN50x64=623.3
RN50x64-quickgelu=623.3  RN101=119.7  RN101-quickgelu=119.7  roberta-ViT-B-32=212.7
swin_base_patch4_window7_224=178.6  ViT-B-16=149.6  ViT-B-16-plus=208.4  ViT-B-16-plus-240=208.4
ViT-B-16-quickgelu=149.6  ViT-B-16-SigLIP=203.2  ViT-B-16-SigLIP2=375.2  ViT-B-16-SigLIP2-256=375.2
ViT-B-16-SigLIP2-384=375.5  ViT-B-16-SigLIP2-512=375.8  ViT-B-16-SigLIP-256=203.2  ViT-B-16-SigLIP-384=203.4
ViT-B-16-SigLIP-512=203.8  ViT-B-16-SigLIP-i18n-256=370.6  ViT-B-32=151.3  ViT-B-32-256=151.3
ViT-B-32-plus-256=210.3  ViT-B-32-quickgelu=151.3  ViT-B-32-SigLIP2-256=376.9  ViT-bigG-14=2539.6
ViT-bigG-14-CLIPA=2517.2  ViT-bigG-14-CLIPA-336=2517.8  ViT-bigG-14-quickgelu=2539.6  ViT-bigG-14-worldwide=3630.4
ViT-bigG-14-worldwide-378=3631.2  ViT-e-14=4581.1  ViT-g-14=1366.7  ViT-gopt-16-SigLIP2-256=1871.4
ViT-gopt-16-SigLIP2-384=1871.9  ViT-H-14=986.1  ViT-H-14-378=986.7  ViT-H-14-378-quickgelu=986.7
ViT-H-14-CLIPA=968.2  ViT-H-14-CLIPA-336=968.6  ViT-H-14-quickgelu=986.1  ViT-H-14-worldwide=1858.8
ViT-H-14-worldwide-378=1859.4  ViT-H-14-worldwide-quickgelu=1858.8  ViT-H-16=986.3  ViT-L-14=427.6
ViT-L-14-280=427.8  ViT-L-14-336=427.9  ViT-L-14-336-quickgelu=427.9  ViT-L-14-CLIPA=414.2  ViT-L-14-CLIPA-336=414.5
ViT-L-14-quickgelu=427.6  ViT-L-14-worldwide=581.7  ViT-L-14-worldwide-quickgelu=581.7  ViT-L-16=427.7
ViT-L-16-320=427.9  ViT-L-16-SigLIP2-256=881.5  ViT-L-16-SigLIP2-384=881.9  ViT-L-16-SigLIP2-512=882.3
ViT-L-16-SigLIP-256=652.2  ViT-L-16-SigLIP-384=652.5  ViT-M-16=102.0  ViT-M-16-alt=79.0  ViT-M-32=103.1
ViT-M-32-alt=80.1  ViT-S-16=62.3  ViT-S-16-alt=42.4  ViT-S-32=63.1  ViT-S-32-alt=43.2  ViT-SO400M-14-SigLIP=877.4
ViT-SO400M-14-SigLIP2=1135.5  ViT-SO400M-14-SigLIP2-378=1136.0  ViT-SO400M-14-SigLIP-378=878.0
ViT-SO400M-14-SigLIP-384=878.0  ViT-SO400M-16-SigLIP2-256=1135.7  ViT-SO400M-16-SigLIP2-384=1136.0
ViT-SO400M-16-SigLIP2-512=1136.6  ViT-SO400M-16-SigLIP-i18n-256=1127.4  vit_medium_patch16_gap_256=102.0
vit_relpos_medium_patch16_cls_224=101.9  ViTamin-B=151.0  ViTamin-B-LTT=211.4  ViTamin-L=457.0  ViTamin-L2=687.6
ViTamin-L2-256=687.7  ViTamin-L2-336=687.9  ViTamin-L2-384=688.0  ViTamin-L-256=457.0  ViTamin-L-336=457.2
ViTamin-L-384=457.4  ViTamin-S=62.5  ViTamin-S-LTT=145.8  ViTamin-XL-256=924.8  ViTamin-XL-336=924.8
ViTamin-XL-384=924.8  xlm-roberta-base-ViT-B-32=366.1  xlm-roberta-large-ViT-H-14=1193.0
"""
MILLIONS = {name: float(count) for name, _, count in (word.partition("=") for word in _COUNTED.split())}
