from model_zoo.TF4CTR_FCN.TF4CTR_FCN import TF4CTR_FCN

__all__ = ["TF4CTR_FCN"]
