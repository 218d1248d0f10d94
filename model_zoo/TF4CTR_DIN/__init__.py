from model_zoo.TF4CTR_DIN.TF4CTR_DIN import TF4CTR_DIN

__all__ = ["TF4CTR_DIN"]
