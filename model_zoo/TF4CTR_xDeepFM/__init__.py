from model_zoo.TF4CTR_xDeepFM.TF4CTR_xDeepFM import TF4CTR_xDeepFM

__all__ = ["TF4CTR_xDeepFM"]
