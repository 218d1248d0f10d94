from model_zoo.TF4CTR_FinalNet.TF4CTR_FinalNet import TF4CTR_FinalNet

__all__ = ["TF4CTR_FinalNet"]
