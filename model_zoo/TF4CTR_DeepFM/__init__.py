from model_zoo.TF4CTR_DeepFM.TF4CTR_DeepFM import TF4CTR_DeepFM

__all__ = ["TF4CTR_DeepFM"]
