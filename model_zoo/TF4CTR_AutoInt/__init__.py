from model_zoo.TF4CTR_AutoInt.TF4CTR_AutoInt import TF4CTR_AutoInt

__all__ = ["TF4CTR_AutoInt"]
