from model_zoo.TF4CTR.TF4CTR import TF4CTR

__all__ = ["TF4CTR"]
