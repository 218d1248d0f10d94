from model_zoo.TF4CTR_MaskNet.TF4CTR_MaskNet import TF4CTR_MaskNet

__all__ = ["TF4CTR_MaskNet"]
