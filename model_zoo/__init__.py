"""The model zoo: ``getattr(model_zoo, "TF4CTR_DCNv2")`` is the class, as in FuxiCTR.

One file per twin: its class, its defaults, and a docstring that is its page. FuxiCTR has a package
of this name too; ``fuxictr_tf4ctr_zoo`` says how both are one.
"""

import fuxictr_tf4ctr_zoo as _zoo

_zoo.open_zoo(__name__)
