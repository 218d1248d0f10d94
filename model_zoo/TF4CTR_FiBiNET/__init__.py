from model_zoo.TF4CTR_FiBiNET.TF4CTR_FiBiNET import TF4CTR_FiBiNET

__all__ = ["TF4CTR_FiBiNET"]
