from model_zoo.TF4CTR_FinalMLP.TF4CTR_FinalMLP import TF4CTR_FinalMLP

__all__ = ["TF4CTR_FinalMLP"]
