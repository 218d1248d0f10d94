from model_zoo.TF4CTR_WideDeep.TF4CTR_WideDeep import TF4CTR_WideDeep

__all__ = ["TF4CTR_WideDeep"]
