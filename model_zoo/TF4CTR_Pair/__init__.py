from model_zoo.TF4CTR_Pair.TF4CTR_Pair import TF4CTR_Pair

__all__ = ["TF4CTR_Pair"]
